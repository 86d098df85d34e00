"""The processes of one run: who am I, agree, reduce, fail together. Knows no k-means.

Everything goes through torch.distributed, and processes are started by torchrun, by Slurm or by
torch's own launcher. There is no transport and no rendezvous of our own.
"""
