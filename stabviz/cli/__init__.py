"""The command line: python -m stabviz."""
