"""`python -m vizrobust` is `vizrobust`; torchrun starts it this way."""

from vizrobust.cli import main

main(prog_name="vizrobust")
