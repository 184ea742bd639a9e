"""What engineer, device and fleet agree on: bytes in, verified objects out.

The package does no I/O. Import the modules by name (`skerry_contract.manifest`, …): the device's
long-lived process imports only those that it needs.
"""
