"""fp32 graph → static int8 in Q/DQ form: calibration images → ranges → quantised graph."""
