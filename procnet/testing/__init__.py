"""Fakes and builders for tests, ours and yours: frames, capture files, /proc trees."""
