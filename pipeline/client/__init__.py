"""Clients of a served run (serve.py), and a perception module made of one."""
