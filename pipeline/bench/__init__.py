"""`kvfold bench`: kvfold's engine beside its peers, in one run, on the same weights.

Everything that a worker process imports here is plain Python: peers live in another environment.
"""
