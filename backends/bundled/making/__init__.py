"""What made pyhelp and measures it; stays out of the wheel."""
