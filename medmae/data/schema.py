"""The JSON schema of data specs, for editors: ``schema.json`` beside this file.

``python -m medmae.data.schema`` writes it again after the spec has changed; a test holds the two together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medmae.data.spec import Spec

PATH = Path(__file__).with_name("schema.json")


def schema() -> dict[str, Any]:
    """The schema that :class:`~medmae.data.spec.Spec` has now."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()}


if __name__ == "__main__":
    PATH.write_text(json.dumps(schema(), indent=2) + "\n", encoding="utf-8")
