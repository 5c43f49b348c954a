"""`python -m specdec`: the command line, also under `accelerate launch -m specdec profile`."""

from specdec.cli import app

app(prog_name="specdec")
