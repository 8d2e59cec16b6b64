"""What do we tell the caller?"""
