"""The rescue map: a sweep over initial scales, and what it says.

    python -m experiments.rescue --config=configs/rescue.py --workdir=results/rescue

Writes ``results.csv``, ``config.json``, ``provenance.json`` and ``rescue.png`` to the
workdir and prints the table. Interrupted, the same command goes on where it stopped.
"""

import jax

from experiments.cli import command
from experiments.studies.rescue import plots, scales as rescue, sweeps


def main(config: command.Config, workdir: str) -> None:
    """Computes the map, then draws and prints it."""
    folder, results = sweeps.complete(config, workdir)
    if jax.process_index():
        return  # the first host speaks for all
    labels = {name: arm.label for name, arm in config.optimizers.items()}
    plots.rescue_figure(results, config.reference, labels, describe(config)).savefig(
        folder / "rescue.png", dpi=120
    )
    print(rescue.markdown(rescue.overview_table(results, config.reference, labels)))
    print(
        f"\nA scale is rescued from test accuracy "
        f"{rescue.threshold(results, config.reference):.3f} on (median of seeds)."
        f"\nPicture: {folder / 'rescue.png'}   All runs: {folder / 'results.csv'}"
    )


def describe(config: command.Config) -> str:
    """What was trained, in a sentence for the figure."""
    model = config.model
    return (
        f"{model.name.upper()} of {model.depth} layers ({model.activation}) on "
        f"{config.dataset}, {config.num_steps} steps of {config.batch_size}."
    )


if __name__ == "__main__":
    command.run(main)
