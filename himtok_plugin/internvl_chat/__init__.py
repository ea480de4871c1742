"""InternVL chat checkpoints in the authors' layout, such as the released HiMTok model, for today's transformers.

Contract: `convert.convert_chat_model(folder or hub id, out)` writes a folder that transformers, ms-swift and vLLM load
without remote code; `prompts.prompt(name, expression)` asks the released model in its own words. Does not know
ms-swift. One file each: source (files of a checkpoint), configuration, layout (keys), weights (streamed), token_files
(added tokens), tokenizer, processor (images, chat, generation settings), output (the folder written to), convert (the
whole), prompts.
"""
