"""Checks of the exercises, one module a lesson: lesson_NN.py. They know torch and numpy, not stabviz.ops."""
