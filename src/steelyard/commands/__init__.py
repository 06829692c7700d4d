"""One module per verb of the command line: arguments in, calls to the library, words out."""
