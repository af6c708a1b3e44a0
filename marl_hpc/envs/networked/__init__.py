"""Environments of networked learning: agents on a graph, each with a private reward, who may talk to neighbors only.

`NetworkedBatch.edges` is that graph. What agents observe is their own alone: what neighbors tell each other is the business of
learning. All of them step B copies at once and take any number of agents.
"""
