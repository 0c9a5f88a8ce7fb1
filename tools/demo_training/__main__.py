"""Train the demo checkpoint: `python -m tools.demo_training --out FOLDER`.

With `--only-release` nothing is trained: the files beside the weights of a trained folder are
written again.
"""

import argparse
from pathlib import Path

from tools.demo_training.release import write_release
from tools.demo_training.train import Schedule, measures_line, train


def main() -> None:
    """Parse the command line and train."""
    defaults = Schedule()
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo_training", description="Train the demo checkpoint."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--train-scenes", type=int, default=defaults.train_scenes)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--only-release",
        action="store_true",
        help="only write the samples, reference vectors and model card of a trained folder",
    )
    args = parser.parse_args()

    if args.only_release:
        write_release(args.out)
        return
    schedule = Schedule(
        seed=args.seed,
        train_scenes=args.train_scenes,
        steps=args.steps,
        learning_rate=args.learning_rate,
    )
    print(measures_line(train(schedule, args.out)))


if __name__ == "__main__":
    main()
