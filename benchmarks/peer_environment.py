"""Make the LiteRT peers' own environment: `python -m benchmarks.peer_environment [FOLDER]`, about 3 GB, some minutes.

It is never part of the project's set-up: litert-torch pins what the project does not want pinned.
"""

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks import place

REQUIREMENTS = Path(__file__).with_name("peers-requirements.txt")
WITHOUT_DEPENDENCIES = ("timm==1.0.31", "torchvision==0.29.2")


def make(folder: Path) -> Path:
    """Create the environment in `folder` unless it is there and whole; the path of its python."""
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists() and done.read_text() == REQUIREMENTS.read_text():
        return python
    venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--no-cache-dir"]
    # The project's constraints, which make exports, are not the peers'.
    environment = {name: value for name, value in os.environ.items() if "CONSTRAINT" not in name}
    for chosen in (["-r", str(REQUIREMENTS)], ["--no-deps", *WITHOUT_DEPENDENCIES]):
        subprocess.run([*pip, *chosen], check=True, stdout=sys.stderr, env=environment)
    done.write_text(REQUIREMENTS.read_text())
    return python


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=place.work() / "peer-environment")
    print(make(parser.parse_args().folder))
