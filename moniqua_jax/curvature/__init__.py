"""The smoothness of a model: estimated, turned into a quantizer, refreshed.

Wang, Safaryan and Richtarik, NeurIPS 2022, arXiv:2106.03524.
"""
