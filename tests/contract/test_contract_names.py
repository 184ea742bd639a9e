"""The public names of the contract are pinned: packager, runtime, fleet and other people's tools use them."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

import pytest

import skerry_contract

PUBLIC = {
    "bundle": """
        ALIGNMENT BLOB_FOLDER BundleReader MANIFEST_NAME SIGNATURE_NAME SUFFIX write_bundle
    """,
    "digests": """
        Digest digest_of hex_of parse_digest prefix8 short
    """,
    "envelope": """
        Envelope MAX_SIGNATURES Signature Signer Verifier WireEnvelope check_envelope open_envelope pae
        seal
    """,
    "errors": """
        AccessError BY_CODE BudgetError BundleError BundleFormatError ConfigError ConflictError
        DataError EngineError ExpiredError IncompatibleError InputError LatencyBudgetError ManifestError
        MemoryBudgetError MessageError ModelError NotFoundError OverloadedError RollbackError
        SelfTestError SignatureError SizeBudgetError SkerryError SlotError StorageError TransferError
        UnavailableError from_code
    """,
    "frames": """
        BlockFrame Codec OutboxFrame
    """,
    "limits": """
        DEFAULT_LIMITS GIB KIB Limits MIB
    """,
    "manifest": """
        BlobRef Budgets DATATYPES ENGINES Execution Lineage Manifest NAME Requirements SCHEMA TASKS
        TensorSpec Tolerance Variant bundle_digest parse_manifest
    """,
    "messages": """
        Acknowledge Amount BlockRequest Command CommandResult DESIRED_PAYLOAD_TYPE DesiredModel
        DesiredState DeviceSettings EngineInfo ErrorReport Event EventBatch FINAL_PHASES Hardware Hello
        ModelName ModelReport PROTOCOL Phase Positive Presence PresenceMessage Probation Severity
        UpdateReport Whole WireBlob decode encode
    """,
    "monitoring": """
        CLIP_SD CategoryFeature ClassPrediction EXCEEDANCE EXCEEDANCE_EDGES EmbeddingReference
        FIXED_POINT Feature FloatFeature IMAGE_STATISTICS LAYOUTS MonitoringSpec SCHEMA SCORE_BINS
        SOURCE_KINDS Source TENSOR_STATISTICS parse_spec spec_hash
    """,
    "signing": """
        EcdsaSigner EcdsaVerifier MEDIA_TYPE PAYLOAD_TYPE PREDICATE_TYPE STATEMENT_TYPE
        generate_private_key load_signer load_verifier sign_bundle signer_hint verify_bundle
    """,
    "strict_json": """
        Reader canonical loads
    """,
    "summary": """
        CLOCK_GPS CLOCK_NONE CLOCK_NTP EmbeddingSketch FeatureSketch Flags HealthSketch LATENCY_CELLS
        LabelCount MAGIC NO_FLAGS PredictionSketch WindowSummary check decode encode latency_cell
        latency_quantile merge
    """,
    "tensors": """
        DTYPE_OF_DATATYPE ITEM_SIZES Tensor read_tensors write_tensors
    """,
    "topics": """
        DeviceDown DeviceUp Down Enrolment Group GroupDown ROOT Topic Up check_id down_filter
        ingest_filter parse_topic
    """,
    "varints": """
        COUNT_BITS Reader SUM_BITS Writer
    """,
}
"""By module. To add a name is a minor release, to remove one is a major one."""


def public_names(module: str) -> set[str]:
    """What a module defines itself at its top level; imported names and type variables are not its own."""
    tree = ast.parse((Path(skerry_contract.__path__[0]) / f"{module}.py").read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        for target in targets:
            names |= {leaf.id for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return {name for name in names if not name.startswith("_") and len(name) > 1}


def test_the_modules_are_pinned() -> None:
    assert {module.name for module in pkgutil.iter_modules(skerry_contract.__path__)} == set(PUBLIC)


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_pinned(module: str) -> None:
    assert public_names(module) == set(PUBLIC[module].split())
