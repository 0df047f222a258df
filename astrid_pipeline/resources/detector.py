"""The model that detects: the registry's champion, loaded once a process."""

# No `from __future__ import annotations` here: Dagster reads the resource fields' types at class creation.
import threading
from typing import Any

import dagster as dg
from pydantic import Field

from astrid_pipeline.resources.tracking import CHAMPION, Tracking
from astrid_pipeline.services import postgres
from astrid_pipeline.settings import get_settings

#: Name of the registered model.
DETECTOR = "astrid-detector"

#: Tag of a version that rests on packaged weights: their digest.
WEIGHTS = "weights"

#: The model that was asked for last, by the MLflow run that made it and its version. It outlives the resource, of which
#: Dagster makes a new one each run: to read and compile a model takes seconds, and torch keeps for good what it notes
#: of each network that it compiles (5 MB a run).
_LOADED: dict[tuple[str, str], Any] = {}
_LOADING = threading.Lock()


class DetectorResource(dg.ConfigurableResource):
    """Gives the registered model with the alias `champion`."""

    tracking: dg.ResourceDependency[Tracking]
    device_name: str = Field(default="auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N.")

    @property
    def device(self) -> str | None:
        """What torch is to run on; None lets it choose."""
        return None if self.device_name == "auto" else self.device_name

    def champion(self) -> Any:
        """Return the detector whose registry alias is `champion`.

        A registry without one is new: the weights that come with AstrID are registered as its first version
        and champion, under a lock, so that from then on the registry alone says what detects.

        Raises
        ------
        ModelError
            If the registered files are damaged or do not fit this version of AstrID.
        ServiceError
            If MLflow does not answer.
        """
        from astrid_pipeline.learning import load_model

        found = self.tracking.find(DETECTOR)
        if found is None:
            self._register_packaged()
            found = self.tracking.find(DETECTOR)
            assert found is not None
        # Two steps of one process may ask at once; they get the same.
        with _LOADING:
            if (found.run_id, found.version) not in _LOADED:
                folder = get_settings().home / "cache" / "models" / f"{DETECTOR}-{found.version}"
                model = self.tracking.load(DETECTOR, folder)
                assert model.folder is not None
                (path,) = sorted(model.folder.glob("*.safetensors"))
                loaded = load_model(path).replace(version=f"{DETECTOR}-{model.version}")
                _LOADED.clear()
                # Another may have been promoted meanwhile.
                _LOADED[model.run_id, model.version] = loaded
                return loaded
            return _LOADED[found.run_id, found.version]

    def take_packaged(self, why: str = "") -> None:
        """Make the weights that come with this AstrID the champion; `ServiceError` if MLflow does not answer.

        Where a version has them already, that version is it.
        """
        from astrid_pipeline.learning.weights import PACKAGED, load

        _, _, digest = load(PACKAGED, "detector")
        with postgres.advisory_lock("mlflow", "astrid-detector"):
            for model, _, _ in self.tracking.versions(DETECTOR):
                if model.tags.get("source") == "package" and model.tags.get(WEIGHTS) == digest:
                    self.tracking.set_alias(DETECTOR, CHAMPION, model.version)
                    return
            self._keep_packaged(why or "The weights that come with AstrID")

    def _register_packaged(self) -> None:
        with postgres.advisory_lock("mlflow", "astrid-detector"):
            if self.tracking.find(DETECTOR) is None:
                self._keep_packaged("The weights that come with AstrID")

    def _keep_packaged(self, description: str) -> None:
        from astrid_pipeline.learning.weights import PACKAGED, load

        _, facts, digest = load(PACKAGED, "detector")
        with self.tracking.attempt("packaged weights", tags={"source": "package"}) as attempt:
            self.tracking.register(
                DETECTOR,
                {PACKAGED.name: PACKAGED},
                attempt.run_id,
                alias=CHAMPION,
                tags={"source": "package", "model": f"{facts['name']} {facts['version']}", WEIGHTS: digest},
                description=description,
            )


def newer_packaged(tracking: Tracking) -> str | None:
    """Return the name and version of the weights that came with this AstrID, where an earlier one's still judge.

    None where they judge already, or a model that was trained, or there is no champion yet.
    """
    from astrid_pipeline.learning.weights import PACKAGED, load

    champion = tracking.find(DETECTOR)
    if champion is None or (champion.tags.get("source") != "package" and WEIGHTS not in champion.tags):
        return None
    _, facts, digest = load(PACKAGED, "detector")
    return None if champion.tags.get(WEIGHTS) == digest else f"{facts['name']} {facts['version']}"
