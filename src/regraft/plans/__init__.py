"""What a run will do, as plain validated data; techniques write plans."""

from regraft.plans.schema import ModelInfo, Phase, Plan
from regraft.plans.toml import parse_plan, read_plan, write_plan

__all__ = ["ModelInfo", "Phase", "Plan", "parse_plan", "read_plan", "write_plan"]
