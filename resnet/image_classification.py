"""The name that the paper's README uses; `resnet/main.py` does the work."""

from resnet.main import main

if __name__ == "__main__":
    main()
