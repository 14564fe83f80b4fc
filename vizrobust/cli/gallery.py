"""`vizrobust gallery`: join finished runs into one gallery."""

from __future__ import annotations

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", required=True, type=click.Path(), metavar="DIR", help="Folder of the gallery.")
@click.option("--title", default="Feature images", show_default=True)
def command(runs: tuple[str, ...], out: str, title: str) -> None:
    """Join the pictures of finished runs into one page and one contact sheet.

    \b
    vizrobust gallery runs/conv1 runs/conv2 --out runs/both
    """
    from pathlib import Path

    from vizrobust.report import write_gallery

    page = write_gallery(Path(out), [Path(run) for run in runs], title=title)
    click.echo(f"gallery: {page}")
