"""Which kinds and models the gate was developed with, and which were held out. Fixed beforehand: not to be tuned on."""

DEVELOPMENT_MODELS = ("quickstart", "vww")
HELD_OUT_MODELS = ("resnet20", "mobilenet_v1")

HELD_OUT_KINDS = frozenset(
    {
        "bias_doubled", "range_wide", "channel_sign_flipped", "weights_rolled", "calibrated_on_one_image",
        "weights_of_4_bits", "scales_swapped", "wrong_padding", "relu_removed", "outputs_permuted", "missing_mean",
        "logits_flattened", "output_constant", "import_channel_scaled", "labels_off_by_one", "evaluation_without_mean",
        "file_zero_point_off", "file_channel_zeroed",
    }
)  # fmt: skip
