from secondlook.cli import main

main()
