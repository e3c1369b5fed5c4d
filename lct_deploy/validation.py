"""Settings from users into checked models, with pydantic's complaints in our words."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lct_deploy.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], **values: Any) -> Model:
    """`model(**values)`; raises UsageError with one line for each value that is wrong."""
    try:
        return model(**values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or model.__name__}: {e['msg']}"
            for e in error.errors()
            if e["type"] != "default_factory_not_called"  # a default that needs the value that is wrong
        ]
        raise UsageError("\n".join(lines)) from error
