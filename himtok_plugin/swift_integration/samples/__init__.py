"""From a dataset's rows to a batch: the mask column, the template's mixin, boxes, datasets prepared by name."""
