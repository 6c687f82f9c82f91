"""Train a small classifier on scikit-learn's bundled handwritten digits.

    gpuledger run sweep.toml                      the whole sweep
    python train.py --model svm --size large      one run by hand

Parameters come from gpuledger when a worker runs this script, else from the command line.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import gpuledger

HERE = Path(__file__).parent
FOLDS = 5


def main() -> None:
    """Cross-validate one model and report the accuracy after each fold."""
    options = parse_options()
    images, digits = load_data(options.classes)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=options.seed)
    scores: list[float] = []
    for number, (train, test) in enumerate(folds.split(images, digits), start=1):
        model = make_model(options.model, large=options.size == "large", seed=options.seed)
        model.fit(images[train], digits[train])
        scores.append(float(model.score(images[test], digits[test])))
        print(f"fold {number}/{FOLDS}: accuracy {scores[-1]:.4f}")
        gpuledger.report(step=number, total=FOLDS, val_accuracy=float(np.mean(scores)))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "scores.json").write_text(json.dumps(scores))
    print(f"mean accuracy {np.mean(scores):.4f} ± {np.std(scores):.4f}")


def parse_options() -> argparse.Namespace:
    """Return the options; what gpuledger says goes before the command line's defaults."""
    parser = argparse.ArgumentParser(description="Train a small classifier on handwritten digits.")
    parser.add_argument("--model", choices=["svm", "forest", "mlp"], default="svm")
    parser.add_argument("--size", choices=["small", "large"], default="small")
    parser.add_argument("--classes", choices=["all", "from-file"], default="all")
    parser.add_argument("--seed", type=int, default=gpuledger.seed())
    parser.add_argument("--out", type=Path, help="folder for scores.json")
    parser.set_defaults(**gpuledger.params())
    options = parser.parse_args()
    if gpuledger.params():  # in a worker: keep results with the task
        options.out = gpuledger.task_dir()
    return options


def load_data(classes: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return images (one row each) and digits; `from-file` keeps those listed in classes.txt."""
    images, digits = load_digits(return_X_y=True)
    if classes == "from-file":
        with open(HERE / "classes.txt") as file:
            wanted = [int(word) for word in file.read().split()]
        kept = np.isin(digits, wanted)
        images, digits = images[kept], digits[kept]
    return images, digits


def make_model(name: str, *, large: bool, seed: int) -> Any:
    """Return an untrained classifier."""
    if name == "svm":
        return make_pipeline(StandardScaler(), SVC(C=10.0 if large else 0.1, random_state=seed))
    if name == "forest":
        return RandomForestClassifier(n_estimators=300 if large else 30, random_state=seed)
    layers = (128, 64) if large else (32,)
    return make_pipeline(
        StandardScaler(), MLPClassifier(layers, max_iter=60, tol=1e-3, random_state=seed)
    )


if __name__ == "__main__":
    main()
