"""Megatron checkpoints as MindSpeed-LLM's convert_ckpt_v2 writes them, by its own arithmetic: nothing of ours is used."""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]


def write_as_mindspeed_llm(
    source: Path,
    target: Path,
    *,
    tensor: int = 1,
    pipeline: int = 1,
    expert: int = 1,
    virtual: int = 1,
    noop: tuple[int, ...] = (),
    expert_tensor: int | None = None,
    experts: str = "grouped",
) -> None:
    """From a Hugging Face folder with one file of weights.

    Args:
        source: the Hugging Face folder.
        target: gets ``iter_0000001`` and the tracker.
        tensor: parallel size.
        pipeline: parallel size.
        expert: parallel size.
        virtual: chunks of a pipeline rank.
        noop: numbers of layers that do nothing.
        expert_tensor: 1 for experts that tensor ranks do not share.
        experts: ``grouped``, ``one by one``, or ``transformer engine`` for its names of norms too.
    """
    weights, config = load_file(source / "model.safetensors"), json.loads((source / "config.json").read_text())
    layers = config["num_hidden_layers"] + len(noop)
    places = [number for number in range(layers) if number not in noop]  # of the layers that are there
    each = layers // pipeline // virtual
    pairs = list(product(range(tensor), range(expert)))
    if expert_tensor == 1 and expert > 1:
        longer = max(tensor, expert)
        pairs = [(one % tensor, one % expert) for one in range(longer)]
    args = argparse.Namespace(**{key: value for key, value in config.items() if isinstance(value, (int, str, list))})
    args.num_layers, args.tensor_model_parallel_size, args.attention_backend = layers, tensor, argparse.FileType("r")
    for pipe, (rank, part) in product(range(pipeline), pairs):
        content: dict[str, Any] = {"args": args, "checkpoint_version": 3.0, "iteration": 1}
        for chunk in range(virtual):
            first = (chunk * pipeline + pipe) * each
            state: State = {}
            for layer, place in enumerate(places):
                if first <= place < first + each:
                    split = (tensor, rank), (expert, part), expert_tensor
                    state |= _layer(weights, config, layer, f"decoder.layers.{place - first}.", split, experts)
            state |= _ends(weights, first == 0, first + each == layers, (tensor, rank), pipeline)
            content["model" if virtual == 1 else f"model{chunk}"] = {k: v.clone() for k, v in state.items()}
        folder = target / "iter_0000001" / _folder(rank, (pipe, pipeline), (part, expert))
        folder.mkdir(parents=True)
        torch.save(content, folder / "model_optim_rng.pt", pickle_protocol=4)
    (target / "latest_checkpointed_iteration.txt").write_text("1")


def _folder(rank: int, pipeline: tuple[int, int], expert: tuple[int, int]) -> str:
    return f"mp_rank_{rank:02}" + "".join(f"_{one:03}" for one, size in (pipeline, expert) if size > 1)


def _layer(weights: State, config: dict[str, Any], layer: int, prefix: str, split: Any, experts: str) -> State:
    tensor, expert, expert_tensor = split
    state = _attention(weights, config, layer, prefix, *tensor, experts == "transformer engine")
    own = f"model.layers.{layer}.mlp."
    mlp = {key.removeprefix(own): value for key, value in weights.items() if key.startswith(own)}
    if "gate.weight" in mlp:
        return state | _experts(mlp, config, prefix, expert, (1, 0) if expert_tensor == 1 else tensor, experts)
    return state | _feed_forward(mlp, prefix + "mlp.", *tensor)


def _ends(weights: State, first: bool, last: bool, tensor: tuple[int, int], pipeline: int) -> State:
    embedding, state = weights["model.embed_tokens.weight"], {}
    if first:
        state["embedding.word_embeddings.weight"] = embedding.chunk(tensor[0])[tensor[1]]
    if last:
        state["decoder.final_layernorm.weight"] = weights["model.norm.weight"]
        head = weights.get("lm_head.weight", embedding if pipeline > 1 else None)
        if head is not None:
            state["output_layer.weight"] = head.chunk(tensor[0])[tensor[1]]
    return state


def _attention(
    weights: State, config: dict[str, Any], layer: int, prefix: str, tensor: int, rank: int, fused_norms: bool
) -> State:
    theirs, heads, groups = f"model.layers.{layer}.", config["num_attention_heads"], config["num_key_value_heads"]
    size, hidden = config["head_dim"], config["hidden_size"]
    query, key, value = (weights[f"{theirs}self_attn.{one}_proj.weight"] for one in "qkv")
    parts = [
        query.reshape(groups, size * heads // groups, -1),
        key.reshape(groups, size, -1),
        value.reshape(groups, size, -1),
    ]
    before = "self_attention.linear_qkv.layer_norm_weight" if fused_norms else "input_layernorm.weight"
    return {
        prefix + before: weights[theirs + "input_layernorm.weight"],
        prefix + "pre_mlp_layernorm.weight": weights[theirs + "post_attention_layernorm.weight"],
        prefix + "self_attention.linear_qkv.weight": torch.cat(parts, 1).reshape(-1, hidden).chunk(tensor)[rank],
        prefix + "self_attention.linear_proj.weight": weights[theirs + "self_attn.o_proj.weight"].chunk(tensor, 1)[
            rank
        ],
        prefix + "self_attention.q_layernorm.weight": weights[theirs + "self_attn.q_norm.weight"],
        prefix + "self_attention.k_layernorm.weight": weights[theirs + "self_attn.k_norm.weight"],
    }


def _feed_forward(
    mlp: State, prefix: str, tensor: int, rank: int, suffixes: tuple[str, str] = (".weight",) * 2
) -> State:
    gate, up, down = (mlp[f"{one}_proj.weight"] for one in ("gate", "up", "down"))
    return {
        f"{prefix}linear_fc1{suffixes[0]}": torch.cat([gate.chunk(tensor)[rank], up.chunk(tensor)[rank]]),
        f"{prefix}linear_fc2{suffixes[1]}": down.chunk(tensor, 1)[rank],
    }


def _experts(
    mlp: State, config: dict[str, Any], prefix: str, part: tuple[int, int], tensor: tuple[int, int], experts: str
) -> State:
    count, hidden = config.get("num_experts") or config["num_local_experts"], config["hidden_size"]
    state = {prefix + "mlp.router.weight": mlp["gate.weight"]}
    one_by_one = [
        {
            key.removeprefix(f"experts.{number}."): value
            for key, value in mlp.items()
            if key.startswith(f"experts.{number}.")
        }
        for number in range(count)
    ]
    if experts != "grouped":
        own = one_by_one[count // part[0] * part[1] : count // part[0] * (part[1] + 1)]
        for local, each in enumerate(own):
            if experts == "one by one":
                state |= _feed_forward(each, f"{prefix}mlp.experts.local_experts.{local}.", *tensor)
            else:
                state |= _feed_forward(each, f"{prefix}mlp.experts.", *tensor, (f".weight{local}",) * 2)
        return state
    inner, outer = [], []
    for each in one_by_one:
        gates, ups = each["gate_proj.weight"].chunk(tensor[0]), each["up_proj.weight"].chunk(tensor[0])
        inner.append(torch.cat([torch.cat(pair) for pair in zip(gates, ups)]).t())
        outer.append(each["down_proj.weight"].t())
    first = torch.cat(inner).view(hidden, -1).view(count, hidden, -1).chunk(part[0])[part[1]]
    second = torch.cat(outer).view(-1, hidden).view(count, -1, hidden).chunk(part[0])[part[1]]
    state[prefix + "mlp.experts.weight1"] = first.chunk(tensor[0], 2)[tensor[1]].reshape(hidden, -1)
    state[prefix + "mlp.experts.weight2"] = second.chunk(tensor[0], 1)[tensor[1]].reshape(-1, hidden)
    return state
