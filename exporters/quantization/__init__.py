"""fp32 graph → static int8 or fp8 in Q/DQ form: calibration images → ranges → quantised graph."""
