"""Earlier names of `_target_`s are replaced by current ones; the rest of a config is unchanged."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest
from omegaconf import OmegaConf

from ret_lightning.config.targets.target_aliases import ALIASES, current_target, update_targets


@pytest.mark.parametrize("new", sorted(set(ALIASES.values())))
def test_alias_names_an_object_of_its_package(new: str) -> None:
    package, _, name = new.rpartition(".")
    found = resolve_name(f"{package}:{name}")
    assert callable(found)
    assert found.__name__ == name


def test_alias_is_not_another_earlier_name() -> None:
    assert not set(ALIASES.values()) & set(ALIASES)


@pytest.mark.parametrize("name", ["ret_lightning.data.M2KRDataModule", "torch.optim.AdamW", None, 3])
def test_other_targets_keep_their_name(name: object) -> None:
    assert current_target(name) == name


@pytest.mark.parametrize("old", ALIASES)
def test_earlier_name_keeps_its_last_part(old: str) -> None:
    new = current_target(old)
    assert new != old
    assert new.rpartition(".")[2] == old.rpartition(".")[2]


def test_targets_are_updated_at_any_depth() -> None:
    old, new = "ret_lightning.models.gates.LSTMGate", "ret_lightning.models.LSTMGate"
    config = OmegaConf.create(
        {
            "_target_": "ret_lightning.training.module.RetModule",
            "name": old,  # a string that is not a target
            "gates": [{"_target_": old}, [{"gate": {"_target_": old, "size": "${size}"}}], None],
            "size": 3,
            "same": "${gates}",
            "missing": "???",
            "empty": None,
        }
    )
    update_targets(config)
    assert OmegaConf.to_container(config) == {
        "_target_": "ret_lightning.training.RetModule",
        "name": old,
        "gates": [{"_target_": new}, [{"gate": {"_target_": new, "size": "${size}"}}], None],
        "size": 3,
        "same": "${gates}",
        "missing": "???",
        "empty": None,
    }
