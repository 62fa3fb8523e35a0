"""What `rankzero doctor` looks at, one module for each kind of thing; put together in launch/doctor.py."""
