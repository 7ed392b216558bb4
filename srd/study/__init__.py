"""The paper's questions as commands: variants of one recipe, trained, selected, tested, shown."""
