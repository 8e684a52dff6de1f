"""`kvfold bench`: kvfold's engine beside its peers, in one run, from the same weights; kvfold's are folded.

Everything that a worker process imports here is plain Python: peers live in another environment.
"""
