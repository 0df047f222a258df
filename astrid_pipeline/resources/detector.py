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

    def _register_packaged(self) -> None:
        from astrid_pipeline.learning.weights import PACKAGED

        with postgres.advisory_lock("mlflow", "astrid-detector"):
            if self.tracking.find(DETECTOR) is not None:
                return
            with self.tracking.attempt("packaged weights", tags={"source": "package"}) as attempt:
                self.tracking.register(
                    DETECTOR,
                    {PACKAGED.name: PACKAGED},
                    attempt.run_id,
                    alias=CHAMPION,
                    tags={"source": "package"},
                    description="The weights that come with AstrID",
                )
