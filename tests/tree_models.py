"""Small models of scikit-learn, LightGBM and XGBoost, made once by them and kept in the user's cache directory.

A helper for tests, and the script that it runs with the toolchain's own Python: no test imports these packages.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = ["path"]

SEED = 7


def path(name: str) -> Path:
    """A made model; do not write to it, others use it too.

    Args:
        name: `binary.ubj`, `several.json`, `regression.txt`, `forest.skops`, ...
    """
    from made_models import folder_of, model  # not for the script

    return model(folder_of(Path(__file__), "trees"), name)


def make(folder: Path) -> None:
    """Write each kind of model: two classes, three classes, a number."""
    import joblib
    import lightgbm
    import numpy as np
    import skops.io
    import xgboost
    from sklearn import cluster, datasets, ensemble, linear_model, neural_network, pipeline, preprocessing, svm

    iris, numbers = datasets.load_iris(), datasets.load_diabetes()
    flowers, kinds = iris.data.astype(np.float32), iris.target
    targets = {
        "binary": (flowers, (kinds == 1).astype(int)),
        "several": (flowers, kinds),
        "regression": (numbers.data.astype(np.float32), numbers.target / 100),
    }
    for name, (rows, labels) in targets.items():
        regression = name == "regression"
        forest = xgboost.XGBRegressor if regression else xgboost.XGBClassifier
        made = forest(n_estimators=12, max_depth=3, random_state=SEED).fit(rows, labels)
        made.get_booster().save_model(folder / f"{name}.json")
        made.get_booster().save_model(folder / f"{name}.ubj")
        light = lightgbm.LGBMRegressor if regression else lightgbm.LGBMClassifier
        light(n_estimators=12, num_leaves=7, random_state=SEED, verbose=-1).fit(rows, labels).booster_.save_model(
            folder / f"{name}.txt"
        )
    named = np.array(["setosa", "versicolor", "virginica"])[kinds]
    models = {
        "logistic": (pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()), named),
        "forest": (ensemble.RandomForestClassifier(10, max_depth=4, random_state=SEED), kinds),
        "boosting": (ensemble.GradientBoostingRegressor(n_estimators=10, random_state=SEED), flowers[:, 0] * 2),
        "network": (neural_network.MLPClassifier((8,), max_iter=200, random_state=SEED), kinds),
        "vectors": (svm.SVC(probability=True, random_state=SEED), kinds),
        "clusters": (cluster.KMeans(3, n_init=2, random_state=SEED), None),
    }
    for name, (model, labels) in models.items():
        model.fit(flowers, labels)
        skops.io.dump(model, folder / f"{name}.skops")
    joblib.dump(models["forest"][0], folder / "forest.joblib")
    # What a scikit-learn pipeline may hold, and what runs when it is read or used.
    import functools
    import os

    evil = preprocessing.FunctionTransformer(functools.partial(os.mkdir, "mark"))
    skops.io.dump(pipeline.make_pipeline(evil, linear_model.LinearRegression()), folder / "evil.skops")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    make(target)
