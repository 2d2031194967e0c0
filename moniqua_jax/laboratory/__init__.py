"""The convex laboratory: problems whose smoothness matrices are known."""
