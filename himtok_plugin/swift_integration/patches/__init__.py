"""Changes to ms-swift where it has no hook; everything else goes through its registries and subclasses.

What is patched: the functions in the table below, by `replacing.around` and `replacing.add` alone; beside them two
attributes of RowPreprocessor (`rows`: which columns survive, what caches are called) and a name of evalscope's
(`evaluating`). `arguments.py`, applied while ms-swift is only half imported, is the one other place that changes it.
Why: each function of the files below says what it changes, for want of which hook, and when it can go.
Contract: `apply` is idempotent, and comes before ms-swift loads a model or rows. A replacement is given what stood
there, and calls it for whatever is not ours: a run without masks is ms-swift's own.
How a patch notices that ms-swift or transformers changed beneath it. Written against ms-swift 4.6, to which setup.py
holds it, and transformers 5.19:
- what is replaced is gone, or has another name or place: `apply` fails, and so every command before it does anything;
- ms-swift has by now what we add: likewise;
- a function takes other arguments: a TypeError when it is called, where the replacement names the one concerned, or
  names all of them;
- the same name and arguments mean something else: nothing here notices. tests/swift_integration/ runs ms-swift's
  commands for that, and is to be run before setup.py allows another version.

File        Replaced                                           so that
----------  -------------------------------------------------  -------
rows        DatasetLoader._load_dataset_path                   rows know their file
            DatasetLoader._load_repo_dataset                   or the hub's dataset that they are of
            RowPreprocessor.prepare_dataset                    rows have numbers, and lists of masks survive reading
            RowPreprocessor.batched_preprocess                 `masks` of every row come through, checked
            AutoPreprocessor._get_preprocessor                 rows that hold masks only are understood
            KTOPreprocessor.batched_preprocess                 answers of other rows come with their masks
loading     register.get_template_meta                         every multimodal base's template knows masks
            template.get_template_meta                         the same, for whoever imports it later
            ModelLoader._add_new_special_tokens                a loaded model gets mask tokens and a mask tokenizer
            Gemma3VisionTemplate._encode                       Gemma 3 sees images as it was trained to
            gemma._patch_gemma4_forward                        Gemma 4 takes several images
training    TunerMixin.prepare_model                           adapters train the mask tokens' rows
            TrainerFactory.get_trainer_cls                     our trainers run; GRPO's log reads questions with masks
            GRPOTrainer._apply_chat_template_to_messages_list  (the latter, when that trainer is chosen)
            GKDTrainer._apply_chat_template_to_messages_list   (the same)
            OnPolicySample.to_template_dict                    GRPO trains with the masks of questions
            OnPolicySample.to_infer_request                    GRPO samples with them
            AcceleratorState.__init__                          FSDP shards on CPUs
saving      SwiftMixin._save                                   checkpoints have `mask_tokenizer/`
            SwiftMixin.save_model (new)                        FSDP's checkpoints have the model's own files
            merge_lora.save_checkpoint                         merged models have `mask_tokenizer/`
            quant.save_checkpoint                              quantised models have it
answering   InferEngine.__init__                               every engine obeys the grammar of masks
            TransformersEngine._infer_full                     responses carry masks
            TransformersEngine._infer                          which a refiner refines
            SwiftInfer._batch_infer                            result rows have `masks`
            SwiftInfer.infer_single                            so have answers one by one
            SwiftInfer._prepare_val_dataset                    `--resume_result` goes on
            SwiftInfer.infer_dataset                           results of several processes on CPUs are all written
deploying   SwiftDeploy._register_app                          a bad request fails alone
            SwiftDeploy.infer_async (new)                      chat has masks and segments
            TransformersEngine._infer_stream                   streams have masks as well
            InferStreamer._get_response                        and show them as they close
            StreamerMixin.__next__                             a stream that fails ends
evaluating  EvalArguments.list_eval_dataset                    `swift eval` runs without OpenCompass
"""

from __future__ import annotations

from . import answering, deploying, evaluating, loading, rows, saving, training

_MARK = "_himtok_patched"


def apply() -> None:
    """Apply all patches, once per process."""
    from swift.template import Template

    if getattr(Template, _MARK, False):
        return
    rows.number_rows()
    rows.keep_mask_columns()
    rows.pair_answers_with_their_masks()
    loading.compose_templates()
    loading.extend_models()
    loading.mark_image_tokens_of_gemma3()
    loading.join_features_of_gemma4()
    training.train_mask_tokens_beside_adapters()
    training.choose_trainers()
    training.shard_on_cpus()
    training.sample_with_masks_of_questions()
    saving.save_sidecars()
    saving.save_whole_models()
    answering.constrain_engines()
    answering.attach_masks_to_responses()
    answering.write_masks_to_results()
    answering.go_on_with_results()
    answering.gather_results_on_cpus()
    deploying.serve_segments()
    deploying.stream_text_at_mask_tokens()
    deploying.end_streams_that_fail()
    evaluating.evaluate_without_opencompass()
    setattr(Template, _MARK, True)
