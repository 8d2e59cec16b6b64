"""Whose bytes are these, and how do we know?"""
