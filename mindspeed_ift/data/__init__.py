"""From files to batches: offline, records become an indexed dataset; online, that dataset becomes batches.

Read in this order. Offline: ``preprocess`` (the pipeline), ``inputs`` (files), ``records``, ``formats`` (records ->
``conversation``), ``templates`` with ``tool_formats`` (conversation -> text), ``encode`` (text -> ``sample``),
``workers``, ``packing``, ``indexed`` (files of the dataset), ``ledger`` (the account). Online: ``dataset``, ``batch``.
Beside it: ``tokenizer``, and ``qwen3_tokenizer``, which builds Qwen3's folder.

Imports ``config`` alone of the packages, and never Megatron.
"""
