"""Does the gate catch what is wrong, and leave alone what is right? `python -m benchmarks.faults`.

Faults are put into real conversions: into the imported graph, the table of scales, the written file, or the data. A
fault counts when, on images that the gate does not see, it changes more predictions or costs more SQNR than 99 % of
the clean conversions do; `count.py` decides that and shares nothing with the gate. Kinds and models were split into
those used for development and those held out before any was run (`split.py`).
"""
