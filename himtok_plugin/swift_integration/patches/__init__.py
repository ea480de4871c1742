"""Patches of ms-swift, transformers and accelerate where they have no hook. All else uses their registries.

Contract: `apply` is idempotent and runs before ms-swift loads a model or a dataset. Each patch function says what it
changes, why, when it can go, and which upstream issue it relates to. The table lists all functions that `around` and
`add` (replacing.py) replace. Patches also change two attributes of RowPreprocessor (rows.py), the server's routes
(deploying.py) and a name of evalscope's (evaluating.py). A replacement leaves everything without masks to the
original. options/ changes ms-swift's argument classes while ms-swift is imported.

The patches are for ms-swift 4.6, which setup.py pins, and transformers 5.19. Other versions can differ:
- a replaced function is missing, renamed or moved, or an added one exists: `apply` fails, and so does every command;
- the signature or body of a replaced function is another: tests/swift_integration/patches/patched_functions.json has
  the signatures and hashes that were reviewed, and its test names what changed and which patch depends on it;
- something that a replaced function calls means something else: the tests of ms-swift's commands notice it, if any.

Does not know how masks are read, predicted or trained: a patch only connects ms-swift to the other rooms.

File        Replaced                                           so that
----------  -------------------------------------------------  -------
rows        DatasetLoader._load_dataset_path                   files without rows are refused; rows have their name
            DatasetLoader._load_repo_dataset                   or of their dataset on the hub
            RowPreprocessor.prepare_dataset                    rows have numbers, and columns of masks stay strings
            RowPreprocessor.batched_preprocess                 the masks of every row are checked and kept
            RowPreprocessor.__reduce_ex__ (new)                spawned workers that read rows have these patches
            loader._inject_dataset_routing_tag                 and can read streams
            AutoPreprocessor._get_preprocessor                 rows with masks only are read as messages
            SwiftSft._show_dataset                             training on unusable rows says why
            KTOPreprocessor.batched_preprocess                 the answers of other rows have their masks
loading     register.get_template_meta                         templates of multimodal base models handle masks
            template.get_template_meta                         the same, for later imports
            ModelLoader._add_new_special_tokens                a loaded model has mask tokens and a mask tokenizer
            Gemma3VisionTemplate._encode                       Gemma 3 attends to images in both directions
            Gemma3VisionTemplate.replace_tag                   and gets the same prompts from all engines
            InternvlhfTemplate.replace_tag                     so does InternVL
            gemma._patch_gemma4_forward                        Gemma 4 accepts several images
training    TunerMixin.prepare_model                           adapters train the embeddings of mask tokens
            TrainerFactory.get_trainer_cls                     our trainers run; GRPO logs questions with masks
            GRPOTrainer._apply_chat_template_to_messages_list  (the latter, once this trainer is chosen)
            GKDTrainer._apply_chat_template_to_messages_list   (the same)
            OnPolicySample.to_template_dict                    GRPO trains on questions with masks
            OnPolicySample.to_infer_request                    GRPO samples answers to them
            KTOTrainer.kto_loss                                KTO in half precision runs in several processes
            AcceleratorState.__init__                          FSDP shards on CPUs
            SwiftMixin.train                                   a resumed run equals a whole one on CPUs
saving      SwiftMixin._save                                   checkpoints have `mask_tokenizer/`
            SwiftMixin.save_model (new)                        so have those of FSDP and ZeRO-3 that have shards only
            SwiftSft._prepare_dataset                          they list the words of their training questions,
            SwiftSft._get_dataset                              where these are known
            SwiftMixin._save_checkpoint                        an interrupted checkpoint is recognised and named
            trainer.rotate_checkpoints                         and deleted before whole ones
            merge_lora.save_checkpoint                         merged models have `mask_tokenizer/`
            quant.save_checkpoint                              quantized models have it
answering   InferEngine.__init__                               every engine generates valid mask text
            TransformersEngine._infer_full                     responses have masks
            TransformersEngine._infer                          a refiner improves them, and requests fail alone
            SwiftInfer._batch_infer                            results have `masks`
            SwiftInfer.infer_single                            also with `--stream` and in dialogues
            SwiftInfer.run                                     rows that fail get results and an exit status
            SwiftInfer._prepare_val_dataset                    `--resume_result` skips rows with results
            SwiftInfer.infer_dataset                           no result of several processes on CPUs is lost
deploying   SwiftDeploy._register_app                          all routes check requests
            SwiftDeploy._prepare_request_media                 media of requests are read once
            SwiftDeploy.infer_async (new)                      chat requests have masks, responses segments
            SwiftDeploy.run                                    the server ends in time
            TransformersEngine._fetch_infer_requests           requests without a client are skipped
            InferEngine.set_default_max_tokens                 no request takes the room of others
            TransformersEngine._infer_stream                   streams have masks
            InferStreamer._get_response                        and send each when it closes
            StreamerMixin.__next__                             a stream that fails ends with its error
opening     SwiftApp.run                                       `swift app` opens our page (once gradio is imported)
            app_args.find_free_port                            at the port that was asked for
evaluating  EvalArguments.list_eval_dataset                    `swift eval` runs without OpenCompass
"""

from __future__ import annotations

from . import answering, deploying, evaluating, loading, opening, rows, saving, training

_MARK = "_himtok_patched"


def apply() -> None:
    """Apply all patches, once per process."""
    from swift.template import Template

    if getattr(Template, _MARK, False):
        return
    rows.check_dataset_files()
    rows.name_unusable_datasets()
    rows.number_rows()
    rows.keep_mask_columns()
    rows.pickle_streamed_datasets()
    rows.pair_masks_for_kto()
    loading.compose_templates()
    loading.extend_models()
    loading.mark_gemma3_image_tokens()
    loading.join_gemma3_newlines()
    loading.break_lines_behind_internvl_images()
    loading.concatenate_gemma4_features()
    training.train_mask_tokens_with_adapters()
    training.choose_trainers()
    training.align_weights_on_cpus()
    training.keep_dtype_of_kto_rewards()
    training.shard_on_cpus()
    training.pass_question_masks_to_samples()
    saving.save_sidecars()
    saving.save_sharded_models()
    saving.keep_whole_checkpoints()
    answering.constrain_engines()
    answering.attach_masks_to_responses()
    answering.write_masks_to_results()
    answering.resume_results()
    answering.gather_results_on_cpus()
    deploying.serve_segments()
    deploying.isolate_requests()
    deploying.end_server()
    deploying.flush_streams_at_masks()
    deploying.raise_stream_errors()
    opening.open_segmentation_page()
    evaluating.list_evalscope_benchmarks()
    setattr(Template, _MARK, True)
