from bertorch.threads import spin_briefly

spin_briefly()  # before conftest.py imports torch
