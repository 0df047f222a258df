"""`python -m astrid_pipeline.cli`."""

from astrid_pipeline.cli import main

main()
