"""The code scheme "box": the first codes are the object's bounding box, the others its shape in this box.

`framing` finds boxes and resamples between the square and a canvas in a box; `box_codes` writes boxes as codes;
`residual_quantizer` has a codebook for each position, each code refining the sum of those before it; `coders` are
encoder and decoder; `codebook_fit` and `objective` train them in stage 1.
"""
