"""How the parts of the server are put together: one place, no part looks for another."""

from __future__ import annotations

from dataclasses import dataclass, replace

from skerry_contract.errors import ConfigError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.signing import EcdsaVerifier, load_verifier

from . import migrations
from .alerts.service import AlertService
from .auth import Tokens
from .blobs import BlobStore
from .clock import Clock, SystemClock
from .db import Database
from .devices.config_toml import Site
from .devices.service import DeviceService
from .devices.sightings import Sightings
from .director import Director
from .governance.service import Journal
from .models import repository as models_repository
from .models.service import ModelService
from .mosquitto import hash_password
from .rollouts.engine import RolloutEngine
from .rollouts.service import RolloutService
from .settings import Settings
from .telemetry.days import DayFiles
from .telemetry.service import TelemetryService
from .ticker import Ticker

TICK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that endpoints, ingest and the command line use."""

    settings: Settings
    site: Site
    clock: Clock
    db: Database
    blobs: BlobStore
    days: DayFiles
    director: Director
    tokens: Tokens
    journal: Journal
    devices: DeviceService
    sightings: Sightings
    models: ModelService
    rollouts: RolloutService
    engine: RolloutEngine
    engine_ticker: Ticker
    alerts: AlertService
    telemetry: TelemetryService

    def close(self) -> None:
        self.days.close()
        self.db.close()


def build_services(settings: Settings, *, clock: Clock | None = None) -> Services:
    """Open, or at the first start make, everything in the data folder. No thread runs yet.

    Raises:
        ConfigError: a key cannot be used, or the database is of a newer version of Skerry.
        StorageError: the data folder cannot be used.
    """
    clock = clock or SystemClock()
    engineers = _engineers(settings)
    director = Director.open(settings.data / "director.key")
    tokens = Tokens.open(settings.data / "admin.token", clock)
    db = Database(settings.data / "fleet.db")
    migrations.upgrade(db)
    blobs = BlobStore(settings.data / "blobs")
    with db.read() as connection:
        blobs.remove_unlisted(models_repository.listed_artifacts(connection))
    days = DayFiles(settings.data / "telemetry", clock)
    site = Site(
        org=settings.org,
        broker_host=settings.broker_host,
        broker_port=settings.broker_port,
        tls_ca=settings.tls_ca,
        engineers=[engineer.pem.decode() for engineer in engineers],
        director=director.public_pem,
        window_seconds=settings.window_seconds,
        window_rows=settings.window_rows,
    )
    journal = Journal(db, clock)
    limits = replace(DEFAULT_LIMITS, bundle_bytes=min(settings.max_bundle_bytes, DEFAULT_LIMITS.bundle_bytes))
    models = ModelService(db, blobs, clock, journal, engineers, limits)
    devices = DeviceService(
        db,
        clock,
        journal,
        director,
        site,
        desired_ttl_s=settings.desired_ttl_s,
        hash_password=hash_password,
    )
    alerts = AlertService(db, clock, journal)
    engine = RolloutEngine(db, clock, journal, devices, models, alerts)
    rollouts = RolloutService(db, clock, journal, devices, models)
    ticker = Ticker("rollouts", TICK_S, engine.tick)
    devices.report_observers.append(engine.observe)
    devices.change_observers.append(ticker.wake)
    rollouts.observers.append(ticker.wake)
    return Services(
        settings=settings,
        site=site,
        clock=clock,
        db=db,
        blobs=blobs,
        days=days,
        director=director,
        tokens=tokens,
        journal=journal,
        devices=devices,
        sightings=Sightings(db, clock),
        models=models,
        rollouts=rollouts,
        engine=engine,
        engine_ticker=ticker,
        alerts=alerts,
        telemetry=TelemetryService(days),
    )


def _engineers(settings: Settings) -> list[EcdsaVerifier]:
    found = []
    for path in settings.trust:
        try:
            found.append(load_verifier(path.read_bytes()))
        except OSError as error:
            raise ConfigError(
                f"the engineer's key {path} cannot be read: {error.strerror}",
                hint="'skerry keys init' makes one; trust its .pub file.",
            ) from error
    return found
