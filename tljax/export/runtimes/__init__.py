"""Programs that run an exported network without tljax: each the whole of what its user needs to write.

They are started as `python -P FILE MODEL METADATA BATCHES OUT`, read uint8 batches from an .npz file and write the
probabilities of each into another.
"""
