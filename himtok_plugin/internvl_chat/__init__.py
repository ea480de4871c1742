"""Converts InternVL chat models in the authors' layout, such as the released HiMTok, to transformers' InternVL.

`convert.convert_chat_model(folder or hub id, out)` writes a folder that transformers, ms-swift and vLLM load without
remote code. `prompts.format_prompt(name, expression)` builds the questions that the released model was evaluated with.

- convert: the whole conversion
- chat_checkpoint: the files of a chat checkpoint
- chat_config: config.json
- key_mapping, weight_conversion: keys and shapes of tensors, and the weights
- tokenizer_files, fast_tokenizer: the text tokenizer
- processor: images, chat template and generation settings
- output_folder: the folder that is written
- prompts: questions by name

Does not know ms-swift.
"""
