"""A whole command line as MindSpeed-LLM's tune_qwen3_8b script gives it, with small sizes, trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_runs import ROOT, make_datasets, make_hugging_face_model, of_steps

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_the_line_of_the_8b_with_small_sizes_trains(tmp_path: Path) -> None:
    data = make_datasets(tmp_path)
    weights = make_hugging_face_model(tmp_path / "hf", tied=False, vocab_size=400)
    model = (
        "--use-mcore-models --spec mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec --transformer-impl local "
        "--kv-channels 16 --qk-layernorm --num-layers 2 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4 "
        "--group-query-attention --num-query-groups 2 --untie-embeddings-and-output-weights --swiglu --norm-epsilon 1e-6 "
        "--normalization RMSNorm --disable-bias-linear --use-rotary-position-embeddings --position-embedding-type rope "
        "--rotary-base 1000000 --max-position-embeddings 32768 --make-vocab-size-divisible-by 1 --padded-vocab-size 400"
    )
    training = (
        "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 2 --sequence-parallel --seq-length 128 "
        "--use-distributed-optimizer --use-flash-attn --attention-dropout 0 --hidden-dropout 0 --seed 42 --bf16 "
        "--attention-softmax-in-fp32 --no-gradient-accumulation-fusion --no-masked-softmax-fusion --train-iters 2 "
        "--micro-batch-size 1 --global-batch-size 4 --min-lr 1.25e-7 --lr 1.25e-6 --weight-decay 1e-1 --clip-grad 1.0 "
        "--adam-beta1 0.9 --adam-beta2 0.95 --initial-loss-scale 4096 --no-load-optim --no-load-rng --ckpt-format torch "
        "--exit-on-missing-checkpoint --distributed-backend nccl --log-interval 1 --save-interval 1000 "
        "--eval-interval 1000 --eval-iters 0 --finetune --stage sft --is-instruction-dataset --no-pad-to-seq-lengths "
        "--handler-name AlpacaStyleInstructionHandler --prompt-type qwen3 --workers 4 --split 100,0,0 "
        "--enable-hf2mg-convert --model-type-hf qwen3 --tokenizer-type PretrainedFromHF"
    )
    paths = ["--load", str(weights), "--save", str(tmp_path / "save"), "--data-path", str(data["dynamic"])]
    paths += ["--tokenizer-name-or-path", str(tmp_path / "tokenizer")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    line = [*launcher, str(ROOT / "tools/posttrain_gpt.py"), *model.split(), *training.split(), *paths]
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", MINDSPEED_IFT_DEVICE="cpu")
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "--use-flash-attn changes nothing here" in done.stdout
    assert of_steps(tmp_path / "save", "iteration") == [1, 2]
