@echo off
rem Finds a Python of 3.11 or later and passes all arguments to start.py.
setlocal
set "IMPASTO_LAUNCHER=%~0"
set "CHECK=import sys; sys.exit(sys.version_info < (3, 11))"
py -3 -c "%CHECK%" >nul 2>nul && ( py -3 "%~dp0start.py" %* & exit /b )
python -c "%CHECK%" >nul 2>nul && ( python "%~dp0start.py" %* & exit /b )
echo Impasto needs Python 3.11 or later, and none was found. Install it from python.org. 1>&2
exit /b 1
