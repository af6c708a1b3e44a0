"""What crosses ranks: launchers, supervisors, the control store, RPC, collectives. Knows no reinforcement learning.

Only this package talks to torch.distributed. Import from its modules: those that supervisors use start without torch.
"""
