"""The fleet: authorization server, registry of devices, and everything an operator works with.

One ASGI process (``asgi``): the OAuth endpoints are plain functions of values (``grants``, ``enrollment``), ahead of
Django, which does the registry (``models``, ``registry``), the REST interface (``api``) and the pages (``pages``).
May import the hall, never the device wing.
"""
